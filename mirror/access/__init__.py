"""Who may do what. It knows no content and no HTTP messages: `mirror.api.gate` asks it."""
