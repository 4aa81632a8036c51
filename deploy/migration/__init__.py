"""What an operator needs who changes over from another exporter: tables, and the page made of them.

    python -m deploy.migration --write deploy/MIGRATION.md    writes it
    python -m deploy.migration --check deploy/MIGRATION.md    fails where that would change it

Metric by metric is deploy/COVERAGE.md, from gpubpf/compat.
"""
