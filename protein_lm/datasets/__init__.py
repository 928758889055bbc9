"""Protein collections as TFDS builders, without TensorFlow.

`BUILDERS` names each builder's module and class; a new data set is a module
here and a line there.
"""

BUILDERS = {
  'human_swissprot': 'HumanSwissprot',
  'human_proteome': 'HumanProteome',
  'fasta': 'Fasta',
  'parquet': 'Parquet',
  'uniprot': 'Uniprot',
}
