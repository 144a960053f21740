"""The client side of ComfyUI's wire."""
