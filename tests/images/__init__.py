"""Tests of what a pod image is made of: model files, start scripts, Dockerfiles."""
