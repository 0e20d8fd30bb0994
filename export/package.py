def write_run(*a, **k):
    raise SystemExit("later")
