"""Parts that every step uses: processes, seeds, files, locks, run folders and logs. Nothing here knows the steps."""
