"""How code gets fast: search, measure, plan, build, compare. Importing this loads nothing heavy."""
