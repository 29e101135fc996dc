"""The parts of bench_context.py.

job.py       what one process measures, and what it finds
side.py      that process: a context, its prefill and its decode
fill.py      a cache filled to a depth without computing it
grown.py     a saved state with more tokens than were computed
nodes.py     the time of attention, node by node
forecast.py  the time that is left
models.py    the model: a file, the embedded one, or a random one of a well-known shape
report.py    table, CSV, plot, JSON
"""
