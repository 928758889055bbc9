"""Protein language models: train from gin files, evaluate, swap attention.

`protein_lm.load(work_dir)` gives the trained model of a folder.
"""

__all__ = ['load']


def __getattr__(name):
  # Lazy: importing the package costs next to nothing.
  if name == 'load':
    from protein_lm.loading import load

    return load
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
