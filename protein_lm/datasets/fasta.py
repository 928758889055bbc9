"""FASTA files, one or many, plain or gzip, as a data set."""

from protein_lm.datasets.fasta_file import FastaFiles
from protein_lm.datasets.file_builder import FileBuilder


class Fasta(FileBuilder):
  """The proteins of FASTA files; see `FileBuilder`."""

  DESCRIPTION = 'Proteins of FASTA files.'

  def make_source(self) -> FastaFiles:
    return FastaFiles(self.paths)
