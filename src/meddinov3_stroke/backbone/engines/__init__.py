"""What runs the transformer: OpenVINO on a CPU, torch anywhere."""
