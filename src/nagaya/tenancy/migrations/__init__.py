"""How an older registry becomes a current one, in two phases for each release.

``NNNN_pre_…`` only adds: after it, the release before and the new one both run. ``NNNN_post_…`` takes away what only
the release before needed and raises ``nagaya_registry.version``, after which that release refuses to open the
registry. A server's database gets its pre phase when the first server of the new release starts, and its post phase
by :func:`nagaya.tenancy.migration.migrate` once none of the release before is left; a file gets both at once.

A migration is written for what is there at its point in time, and so never uses the tables of
:mod:`nagaya.tenancy.schema`. It takes no locks for long: no rewrite of a big table, no index without
``CONCURRENTLY``.
"""
