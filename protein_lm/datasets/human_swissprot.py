"""The human proteins of Swiss-Prot, from a file that ships with `promb`.

20,417 entries of UniProt 2025_01. Uncertain entries (PE=5) and then exact
duplicates are dropped. Whole 8-mer clusters are hashed 90/5/5 into train,
validation and test. The split `ood` is every protein with a domain of a
held-out family (held_out.py; the rule is applied to the table as it stands,
1,001 proteins, of which the uncertain ones and the duplicates are then missing
here). A cluster that holds an ood protein belongs to no other split: its other
members are dropped.
"""

import hashlib
import importlib.util
import pathlib

from protein_lm.datasets import builder, clusters, held_out
from protein_lm.datasets.fasta_file import Protein, Tally, read_fasta

FILE = pathlib.Path('resources', 'uniprot_sprot_human.fasta.gz')
SHA256 = 'abc81cfdb1b21a85ccc9fc7a7aeea711018dcf203f47cb178b33a9eb014b66ae'


def find_file() -> pathlib.Path:
  """Returns promb's file, without importing promb, its sha256 verified."""
  spec = importlib.util.find_spec('promb')
  if spec is None:
    raise ValueError(
      'human_swissprot needs the package promb, which holds its sequences: '
      'pip install promb==1.0.2 (or the extra quickstart), or train on your '
      "own file with data.source = 'my.fasta.gz'."
    )
  path = pathlib.Path(spec.submodule_search_locations[0], FILE)
  if not path.is_file():
    raise ValueError(
      f'{path} is missing from the package promb; reinstall it: '
      'pip install --force-reinstall promb==1.0.2.'
    )
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  if digest != SHA256:
    raise ValueError(
      f'{path} has sha256 {digest}, not {SHA256}; reinstall the version that '
      'was tested: pip install --force-reinstall promb==1.0.2.'
    )
  return path


class HumanSwissprot(builder.ProteinBuilder):
  """Human Swiss-Prot in train, validation, test and ood."""

  DESCRIPTION = 'Human proteins of Swiss-Prot, split by 8-mer clusters.'
  HOMEPAGE = 'https://www.uniprot.org'
  LICENSE = 'Sequences: UniProt, CC BY 4.0. Domains: Pfam, CC0.'

  def make_splits(self, tally: Tally) -> dict[str, list[Protein]]:
    path = find_file()
    print(f'reading {path}', flush=True)
    proteins = list(read_fasta(path, tally, lambda header: 'PE=5' in header))
    print(f'clustering {len(proteins):,} sequences by 8-mers', flush=True)
    ids = [protein.id for protein in proteins]
    names = clusters.name_clusters(ids, [p.sequence for p in proteins])
    held = held_out.hold_out(held_out.read_domains())
    print(
      f'holding out {len(held.groups)} groups of {len(held.families)} families '
      f'in {len(held.envelopes):,} proteins ({len(held.pure)} pure) in all',
      flush=True,
    )
    blocked = {
      name
      for id_, name in zip(ids, names, strict=True)
      if id_ in held.envelopes
    }
    splits = {'train': [], 'validation': [], 'test': [], 'ood': []}
    num_neighbours = 0
    for protein, cluster in zip(proteins, names, strict=True):
      protein.cluster = cluster
      if protein.id in held.envelopes:
        protein.envelopes = held.envelopes[protein.id]
        protein.pure = protein.id in held.pure
        splits['ood'].append(protein)
      elif cluster in blocked:
        num_neighbours += 1
      else:
        splits[clusters.split_of(cluster)].append(protein)
    tally.counts['kept'] -= num_neighbours
    tally.counts['neighbours of ood dropped'] = num_neighbours
    return splits
