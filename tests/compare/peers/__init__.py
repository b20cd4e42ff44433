"""Who is compared: one file each, a class or two in it.

A class has
    name       what figures and options call it
    title      what it is, with its version
    dialect    which loads it understands
    prepare()  fetches what it consists of; raises Missing where this machine cannot have it
    settings   what is not at its default, as shown beside the figures
    stages     what is not in single stages, likewise
    topic      settings of each topic, likewise
and an object of it is three processes that run in a folder of their own, for one stage of a run:
    bootstrap  where clients connect
    folder     where its data is
    pids()     its processes, by the number that clients know a node by
    restart(node)  after it was killed
    stop()     ends them and removes the data
"""

from . import kafka, trilog

OURS = trilog.Trilog
OTHERS = [kafka.Kafka, kafka.Flushing]
