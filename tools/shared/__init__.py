"""What several commands share: how a command ends, its images, and what a study leaves for its report."""
