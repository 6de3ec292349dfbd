"""Continuous batching on a DeepSpeed model: schedule → forward → sample → update. No sockets."""
