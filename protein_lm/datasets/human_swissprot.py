"""The human proteins of Swiss-Prot, from a file that ships with `promb`.

20,417 entries of UniProt 2025_01. Uncertain entries (PE=5) and then exact
duplicates are dropped. Whole 8-mer clusters are hashed 90/5/5 into train,
validation and test. The split `ood` is every protein with a domain of a
held-out family (held_out.py; the rule is applied to the table as it stands,
1,001 proteins, of which the uncertain ones and the duplicates are then missing
here). A cluster that holds an ood protein belongs to no other split: its other
members are dropped.
"""

import dataclasses
import importlib.util
import pathlib

from protein_lm.datasets import builder, held_out, letters, split_rule
from protein_lm.datasets.fasta_file import FastaFiles


def find_file(name: str, sha256: str, data_set: str) -> pathlib.Path:
  """Returns a file of promb, without importing promb, its sha256 verified."""
  spec = importlib.util.find_spec('promb')
  if spec is None:
    raise ValueError(
      f'{data_set} needs the package promb, which holds its sequences: '
      'pip install promb==1.0.2 (or the extra quickstart), or train on your '
      "own file with data.source = 'my.fasta.gz'."
    )
  path = pathlib.Path(spec.submodule_search_locations[0], 'resources', name)
  if not path.is_file():
    raise ValueError(
      f'{path} is missing from the package promb; reinstall it: '
      'pip install --force-reinstall promb==1.0.2.'
    )
  digest = split_rule.file_hash(path)
  if digest != sha256:
    raise ValueError(
      f'{path} has sha256 {digest}, not {sha256}; reinstall the version that '
      'was tested: pip install --force-reinstall promb==1.0.2.'
    )
  return path


class HumanProteins(builder.ProteinBuilder, skip_registration=True):
  """A file of promb, prepared by rules that nothing changes."""

  HOMEPAGE = 'https://www.uniprot.org'
  LICENSE = 'Sequences: UniProt, CC BY 4.0. Domains: Pfam, CC0.'
  FILE: str
  SHA256: str
  MAX_CLUSTER_FRACTION = split_rule.DEFAULT.max_cluster_fraction

  def __init__(self, **kwargs):
    if (letters.LetterPolicy(), split_rule.SplitRule()) != (
      letters.DEFAULT,
      split_rule.DEFAULT,
    ):
      raise ValueError(
        f'{self.name} has its own splits and letters; bind splits and letters '
        'in gin for a file of your own only.'
      )
    rule = dataclasses.replace(
      split_rule.DEFAULT,
      family_table=str(held_out.TABLE),
      max_cluster_fraction=self.MAX_CLUSTER_FRACTION,
    )
    super().__init__(rule=rule, policy=letters.DEFAULT, **kwargs)

  def make_source(self) -> FastaFiles:
    path = find_file(self.FILE, self.SHA256, self.name)
    return FastaFiles((path,), uncertain_mark=' PE=5')


class HumanSwissprot(HumanProteins):
  """Human Swiss-Prot in train, validation, test and ood."""

  DESCRIPTION = 'Human proteins of Swiss-Prot, split by 8-mer clusters.'
  FILE = 'uniprot_sprot_human.fasta.gz'
  SHA256 = 'abc81cfdb1b21a85ccc9fc7a7aeea711018dcf203f47cb178b33a9eb014b66ae'
