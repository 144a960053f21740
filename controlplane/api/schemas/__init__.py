"""What goes over the wire, as pydantic models: requests are validated by them, responses documented by them."""
