"""The servers that fastsmtp is compared with, a module for each place that they come from; sources and pins beside."""
