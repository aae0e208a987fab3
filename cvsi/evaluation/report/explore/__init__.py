"""The explorer's page, and its data as static files beside a report."""
