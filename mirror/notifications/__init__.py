"""Webhooks: tells receivers of events, in the form of distribution's notifications."""
