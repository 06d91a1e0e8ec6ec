"""Where records come from. Headers only: no module here reads pixels."""
