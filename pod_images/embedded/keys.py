"""Typed keys under which the web application holds this pod's parts."""

from aiohttp import web

from .pod import Pod

POD = web.AppKey("pod", Pod)
