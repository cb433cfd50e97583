"""The sections of `tools/gpu_check.sh`, each of which writes a page of tables."""
