"""The folder of a retriever: what lies in it, how it is replaced, what is verified when it is opened."""
