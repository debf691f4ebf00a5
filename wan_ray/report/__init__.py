"""What lies in an output folder: status for a terminal or a script, a page for a browser, a contact sheet."""
