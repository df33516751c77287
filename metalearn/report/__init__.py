"""What came out: one run's page, and a replication's claims, table and pictures on one page."""

from metalearn.report.combined import combine
from metalearn.report.plan import check
from metalearn.report.plan import evaluate as plan
from metalearn.report.single import page_of, run

__all__ = ["check", "combine", "page_of", "plan", "run"]
