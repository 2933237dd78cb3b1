"""Executors: they decide where the shards of a run are processed.

base.py      jobs, events, and the interface of an executor
worker.py    a worker's side of a run, however its messages travel
dispatch.py  the driver's side: who makes which shard, and what a dead worker loses
process.py   a worker in a process of its own; core_process.py: the core of an engine that several workers use
load.py      what a worker has done, and how many should feed one engine
local.py     one engine in this process, or several on this machine
ray/         actors on a Ray cluster
"""
