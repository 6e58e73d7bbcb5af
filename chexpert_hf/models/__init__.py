"""Model folders: their files and checksums, loading, and download from the Hub."""
