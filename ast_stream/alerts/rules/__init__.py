"""Alert rules: from YAML files to compiled rules."""
