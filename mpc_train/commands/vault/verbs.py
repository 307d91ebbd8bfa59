"""`mpc-train vault`: what a node keeps, encrypted under its own key from the moment it comes in."""

import typer

from mpc_train.commands.vault import keys, objects, tables

vault = typer.Typer(no_args_is_help=True, help="What this node keeps, encrypted.")
vault.command("import")(tables.vault_import)
vault.command("ls")(objects.vault_ls)
vault.command("show")(tables.vault_show)
vault.command("export")(tables.vault_export)
vault.command("key")(keys.vault_key)
vault.command("rotate")(keys.vault_rotate)
vault.command("shred")(objects.vault_shred)
