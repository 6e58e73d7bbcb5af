"""What the server says in more than one place."""

DISCLAIMER = "Research software, not a medical device: not for diagnosis."

STOPPING = "The server is stopping; try again in a minute."
