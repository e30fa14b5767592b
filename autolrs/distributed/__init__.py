"""The same training loop on several workers: Ray Core actors, and the driver that tells them what to do.

crew      the driver's loop: gives instructions, hears reports, replaces workers that die
worker    the actor: a thread that runs the user's function, with a session whose director is `remote`
remote    a director that asks the driver's
messages  what goes between the two
states    the kept state in Ray's object store
shipping  the user's function as bytes
cluster   Ray itself: connecting, and whether it has what was asked for
"""
