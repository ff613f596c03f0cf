"""Before a fit: is training likely to pay? And of a saved retriever: is it sound?"""
