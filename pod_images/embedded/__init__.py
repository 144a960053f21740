"""A pod in one process: ComfyUI's routes and websocket, a small graph executor, and the sketch base model."""
