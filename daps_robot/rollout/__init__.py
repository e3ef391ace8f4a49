"""Policies at work in simulated environments: chunk execution, evaluation, ceilings, replay, latency, video.

    statistics   Wilson intervals, percentiles
    across_seeds means and differences of policies over training seeds and shared start states
    channel      worker processes that answer method calls over a pipe
    simulation   an environment by its Gymnasium id
    worker       what runs in a worker: environments, episodes, expert lookahead (imports no torch)
    player       what plays fixed action sequences in a worker, before a camera or not
    vector       a fixed number of slots over any number of workers, in lockstep
    results      what an evaluation found
    evaluate     a policy's success rate
    ceiling      the scripted expert driven through a tokenizer
    replay       whole demonstrations played back, plain or through a tokenizer
    threads      how many threads a plan is computed with
    latency      the time of one decision
    video        films of chosen episodes

Nothing is imported here: workers import `worker` alone, and start in a fraction of the time that torch takes to load.
"""
