// Conveniences; every page works without them.
"use strict";
document.documentElement.classList.add("scripted");

// Changes `old` into `fresh`, touching only what differs, so that focus and animations stay.
function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    old.nodeValue = fresh.nodeValue;
    return;
  }
  // What the reader has unfolded stays so.
  const kept = old.nodeName === "DETAILS" ? "open" : null;
  for (const { name } of [...old.attributes]) if (name !== kept && !fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  fill(old, fresh);
}

function fill(old, fresh) {
  const news = [...fresh.childNodes];
  while (old.childNodes.length > news.length) old.lastChild.remove();
  news.forEach((child, place) => {
    if (place < old.childNodes.length) morph(old.childNodes[place], child);
    else old.append(child);
  });
}

function show(element, html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  fill(element, template.content);
}

// The live parts of the overview. They pause while the page is hidden.
const moving = document.querySelector("[data-events]");
if (moving) {
  const live = document.getElementById("live");
  let events = null;
  let later = 0;
  const showState = (on) => {
    live.className = on ? "live on" : "live off";
    live.textContent = on ? live.dataset.on : live.dataset.off;
  };
  const listen = () => {
    clearTimeout(later);
    events = new EventSource(moving.dataset.events);
    events.onopen = () => showState(true);
    events.onmessage = (event) => {
      for (const [name, html] of Object.entries(JSON.parse(event.data))) {
        const part = document.getElementById(name);
        if (part) show(part, html);
      }
    };
    events.onerror = () => {
      showState(false);
      // Browsers reconnect by themselves after a broken connection, but not after a refused one.
      if (events.readyState === EventSource.CLOSED) later = setTimeout(listen, 5000);
    };
  };
  const stop = () => {
    clearTimeout(later);
    if (events) events.close();
    events = null;
  };
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) stop();
    else if (!events) listen();
  });
  addEventListener("pagehide", stop);
  addEventListener("pageshow", () => { if (!events) listen(); });
}

// The list is searched while the query is typed.
const search = document.getElementById("search");
if (search) {
  const list = document.getElementById("images");
  let waiting = 0;
  let asked = 0;
  const find = async () => {
    const query = new URLSearchParams([...new FormData(search)].filter(([, value]) => value));
    const number = ++asked;
    const answer = await fetch(`${search.dataset.list}?${query}`).catch(() => null);
    if (!answer || !answer.ok || number !== asked) return;
    show(list, await answer.text());
    history.replaceState(null, "", query.size ? `/?${query}` : "/");
  };
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(find, 200);
  });
  // Enter leads to the page that searches Docker Hub too.
  search.addEventListener("submit", () => clearTimeout(waiting));
}

// An upload shows how far it is, and its answer in place of the page.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (!form.matches(".upload")) return;
  event.preventDefault();
  const going = form.querySelector(".going");
  const bar = going.querySelector("progress");
  const words = going.querySelector("[role=status]");
  const button = form.querySelector("button");
  const percent = new Intl.NumberFormat(document.documentElement.lang, { style: "percent" });
  const request = new XMLHttpRequest();
  request.upload.onprogress = ({ loaded, total }) => {
    bar.max = total;
    bar.value = loaded;
    words.textContent = percent.format(total ? loaded / total : 0);
  };
  request.onload = () => {
    const page = new DOMParser().parseFromString(request.responseText, "text/html");
    const main = page.querySelector("main");
    if (!main) return request.onerror();
    document.title = page.title;
    document.querySelector("main").replaceWith(main);
    main.focus();
  };
  request.onerror = () => {
    going.hidden = true;
    button.disabled = false;
    const note = form.querySelector(".note") || form.appendChild(document.createElement("p"));
    note.className = "note bad";
    note.setAttribute("role", "alert");
    note.textContent = form.dataset.failed;
  };
  request.open("POST", form.action);
  request.setRequestHeader("Accept", "text/html");
  request.send(new FormData(form));
  form.querySelector(".note")?.remove();
  bar.removeAttribute("value");
  words.textContent = "";
  button.disabled = true;
  going.hidden = false;
});

// One box selects all of a page.
document.addEventListener("change", (event) => {
  if (!event.target.matches("[data-all]")) return;
  for (const box of event.target.form.querySelectorAll("[name=image]")) box.checked = event.target.checked;
});

// Copying. Browsers have navigator.clipboard over https and on loopback only; elsewhere execCommand does it.
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "aside";
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  await copy(button.dataset.copy).catch(() => {});
  button.classList.add("done");
  const label = button.getAttribute("aria-label");
  if (label) button.setAttribute("aria-label", document.body.dataset.copied);
  setTimeout(() => {
    button.classList.remove("done");
    if (label) button.setAttribute("aria-label", label);
  }, 1500);
});
