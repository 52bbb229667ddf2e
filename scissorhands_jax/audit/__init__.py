"""Whether a method forgets: ensembles of networks trained with and without each forget set, attacked and compared."""
