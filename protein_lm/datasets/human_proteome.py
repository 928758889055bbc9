"""The human proteome with its isoforms, from a file that ships with `promb`.

83,385 sequences of UniProt's proteome UP000005640. They contain those of
`human_swissprot`: never train on one and test on the other. Prepared by the
same rules (human_swissprot.py); isoforms of a gene share most of their 8-mers,
so they are in one cluster and one split. The largest cluster, chained together
by fragments, holds 10 % of the residues; it has ood proteins among its members,
so the others, most of the 11,695 dropped as neighbours, are in no split.
"""

from protein_lm.datasets.human_swissprot import HumanProteins


class HumanProteome(HumanProteins):
  """The human proteome in train, validation, test and ood."""

  MAX_CLUSTER_FRACTION = 0.15
  DESCRIPTION = 'Human proteome with isoforms, split by 8-mer clusters.'
  FILE = 'uniprotkb_proteome_UP000005640_2025_04_21.fasta.gz'
  SHA256 = '738c74d4ff277c571e807aac85b2b4e28a3ce18e5bb843e3d84a71259ab4ac4e'
