"""The filesystems of the URI schemes; a module is imported when its scheme is first used."""
