"""A D-Bus library: a connection that nobody can stall, objects from interface files, and two clients.

It knows nothing of kerntune but the errors, and no other package of it imports dbus_next.
"""
