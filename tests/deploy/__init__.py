"""What is in deploy/ and grafana/, each judged by its own tool."""
