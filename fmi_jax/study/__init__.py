"""Studies: grids of experiments that are run, resumed and reported as one."""
