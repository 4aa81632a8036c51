"""What the monitoring around gpubpf is generated from: thresholds, rules, dashboards."""
