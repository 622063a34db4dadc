"""An objective of pairs with a reference model, to prove the contract. No file outside this folder knows it."""
