"""The parts of bench_attention.py.

workloads.py  what is computed: caches, plans, and how many keys and bytes that takes
lifelike.py   keys and queries with the statistics of a trained model
graphs.py     one workload in ggml: our op and upstream's, on the same cache
torch_side.py the same in torch
check.py      whether the sides agree, and rows against float64
roofline.py   what the machine could do: matmul and memory rates
measure.py    runs the sides alternately, and makes rows of the times
"""
