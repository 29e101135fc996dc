"""The parts of bench_server.py.

upstream.py  llama-server, built from the unpatched package
sides.py     either server as a process on loopback
client.py    a streamed completion: when its tokens came
contexts.py  contexts of a length without computing them, as both servers restore them
measure.py   the measurements
"""
