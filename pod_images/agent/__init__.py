"""The agent of a ComfyUI pod: it starts ComfyUI on loopback, guards it, speaks for it and lets only us in."""
