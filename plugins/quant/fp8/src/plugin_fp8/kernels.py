def takes_groups(*a): return False
def takes_few(*a): return False
