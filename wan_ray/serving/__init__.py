"""The path behind HTTP, without Ray: jobs that outlive any process, the queue that runs them, and the routes.

A job is a file under the output (jobs.py); what became of it is a record like a batch row's. The queue (queue.py)
hands jobs to whoever renders them; app.py answers for any job from the store, and asks the queue for what is live.
"""
