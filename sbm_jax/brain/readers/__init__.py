"""One module per dataset layout, each with NAME, LAYOUT (what it expects, for messages), `recognise` and `read`."""
