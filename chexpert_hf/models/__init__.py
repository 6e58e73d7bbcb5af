"""Model folders: files, checksums, loading, repositories."""
