"""One suite of protocol cases for every pod: the embedded pod always, a real ComfyUI where one is given."""
