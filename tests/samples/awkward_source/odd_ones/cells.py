# %% [markdown]
# # A title

# %%
ONE = 1

# %% a cell
TWO = ONE + 1
# In[3]:
