{{- define "mirror.selector" -}}
app.kubernetes.io/name: mirror
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "mirror.labels" -}}
{{ include "mirror.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "mirror.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "mirror.peers" -}}
{{ .Release.Name }}-peers
{{- end }}

{{/* The settings, with all pods of a fleet. Which of them a pod is, its environment says. */}}
{{- define "mirror.settings" -}}
{{- $settings := deepCopy .Values.settings }}
{{- if gt (int .Values.replicas) 1 }}
{{- $mirrors := list }}
{{- range $number := until (int .Values.replicas) }}
{{- $mirrors = append $mirrors (printf "%s://%s-%d.%s.%s.svc:5000" (include "mirror.scheme" $) $.Release.Name $number (include "mirror.peers" $) $.Release.Namespace) }}
{{- end }}
{{- $_ := set $settings "fleet" (merge (dict "mirrors" $mirrors) (default dict $settings.fleet)) }}
{{- end }}
{{- toToml $settings | trim }}
{{- end }}

{{- define "mirror.scheme" -}}
{{ if dig "server" "tls_certificate" "" .Values.settings }}https{{ else }}http{{ end }}
{{- end }}

{{/* The ports of a bucket's endpoint, of parents and of mirrors that are not of this release, as JSON. */}}
{{- define "mirror.placePorts" -}}
{{- $ports := list }}
{{- range compact (append (concat (dig "fleet" "parents" list .Values.settings) (dig "fleet" "mirrors" list .Values.settings)) (dig "fleet" "bucket_endpoint" "" .Values.settings)) }}
{{- $place := . }}
{{- if kindIs "map" . }}
{{- $place = .url }}
{{- end }}
{{- $url := urlParse $place }}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (ternary "443" "80" (eq $url.scheme "https")) }}
{{- $ports = append $ports (int $port) }}
{{- end }}
{{- toJson $ports }}
{{- end }}
